"""The commands of `aweigh`, one file each.

A command's file has `add(commands)`, which adds its parser and names the function that runs it. Nothing heavy is
imported before that function runs, so that help and lists appear at once. `pipelines.cli` lists the files.
"""
