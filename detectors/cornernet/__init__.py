"""CornerNet, CornerNet-Squeeze and CornerNet-Saccade: an object is a pair of corners."""
