"""HTML, Markdown and SVG made from plain values; nothing here knows what a study or a run is."""
