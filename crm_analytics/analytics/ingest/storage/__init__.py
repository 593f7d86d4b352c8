"""Where the landing files are: one narrow interface, with a local folder and a bucket behind it."""
