"""What both services do alike as servers: who may in, how calls are refused, what is logged, when it ends.

Only servers import it: it brings structlog, and parts of it gRPC.
"""
