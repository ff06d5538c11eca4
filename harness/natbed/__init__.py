"""natbed: NAT scenarios from network namespaces and real iptables NATs, run, judged and reported."""
