"""CenterNet (Objects as Points): boxes, human pose and 3D boxes."""
