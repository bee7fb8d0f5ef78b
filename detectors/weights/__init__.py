"""Read and write weights files of other libraries."""
