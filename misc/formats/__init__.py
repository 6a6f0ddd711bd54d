"""File formats of other programs: pickles read as data, masks as polygons and run lengths."""
