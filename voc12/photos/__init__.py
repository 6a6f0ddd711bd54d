"""A folder of photos in the layout of the devkit."""
