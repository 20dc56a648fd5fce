"""Measures over frames and series; one decode feeds them all."""
