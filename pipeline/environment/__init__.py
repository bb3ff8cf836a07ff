"""What this machine can do, and the tools it needs: hardware, llama.cpp from pinned source, the doctor."""
