"""What the pages share: style, scripts, HTML, pictures."""
