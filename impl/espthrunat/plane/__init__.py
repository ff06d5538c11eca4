"""The data plane process: TUN device on one side, UDP port 500 on the other."""
