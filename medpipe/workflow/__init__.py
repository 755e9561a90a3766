"""Workflow files, the step registry and the plan."""
