"""The commands of `aweigh`, one file each."""
