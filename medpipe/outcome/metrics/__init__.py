"""Figures of a prediction of two classes, each with its interval."""
