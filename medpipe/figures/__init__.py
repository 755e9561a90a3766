"""Pictures and plots as bytes: arrays in, PNG or SVG out."""
