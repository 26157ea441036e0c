"""The bundled single-node Kubernetes cluster. Standard library only: it runs before any install."""
