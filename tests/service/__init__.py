"""Tests of the guest as a service."""
