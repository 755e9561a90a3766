"""Figures with their intervals, for every part that judges predictions or images."""
