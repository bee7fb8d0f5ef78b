"""FoveaBox with plain and aligned heads."""
