"""HTML pages: the shell with style and scripts, templates, number formats, images and SVG charts."""
