"""The emulated hypervisor as a service."""
