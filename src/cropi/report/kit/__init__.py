"""What every page is made of: HTML, number formats, charts, and the document around them."""
