"""Pure tensor maths: no queries, no files, no printing."""
