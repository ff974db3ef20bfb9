"""Rows of a table, learned with logistic regression."""
