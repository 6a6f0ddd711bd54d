"""COCO 2014 in the layout of the devkit."""

SPLITS = ("train2014", "val2014")
