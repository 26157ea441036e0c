"""The tools of agent_toolset_20260401. They know nothing of gRPC."""
