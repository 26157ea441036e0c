"""The egress gateway: names decide what a sandbox reaches, and nothing leads inside."""
