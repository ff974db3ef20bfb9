"""Handwritten digits, learned by devices that are paid for it."""
