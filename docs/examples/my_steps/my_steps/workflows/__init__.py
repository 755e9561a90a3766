"""Workflow files that come with these steps."""
