"""A trained detector as an MLflow model: written, logged, registered under a name, and served."""
