"""What is wrong with a data set: unreadable files, copies, label errors and outliers; and how to correct it."""
