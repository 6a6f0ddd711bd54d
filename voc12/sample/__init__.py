"""The built-in sample: a painter of small scenes in the layout of the devkit."""
