"""The metrics that papers publish, of folders and files of images: python -m nexttok.score."""
