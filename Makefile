.PHONY: help
help:
	@echo "make demo | make test | make check | make stubs | make bench"
