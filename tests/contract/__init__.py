"""Tests of the contract: its files, its stubs and its codec."""
