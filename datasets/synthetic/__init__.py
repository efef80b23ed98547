"""Synthetic datasets: phantom chest X-rays with exact labels, boxes and masks.

Layers, each importing only from those to its left: canvas -> anatomy -> findings -> film -> draw -> world.
"""
