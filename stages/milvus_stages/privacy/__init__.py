"""Secrets, and keeping them and document texts out of messages."""
