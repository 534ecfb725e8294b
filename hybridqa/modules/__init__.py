"""Knowledge modules on disk: the adapter format, manifests, the registry of versions, composed stacks."""
