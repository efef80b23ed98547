"""The synthetic world: phantom chest films whose labels, boxes and masks agree with what is drawn.

Layers, each importing only from its left: canvas -> anatomy -> findings -> film -> draw -> world.
"""
