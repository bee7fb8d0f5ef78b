"""Pure functions that several detectors use: boxes, Gaussians, peaks, losses, suppression."""
