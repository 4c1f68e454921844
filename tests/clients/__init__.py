"""Clients that know the contract only: in Node, by reflection, by plain events; and tests that run them."""
