"""espthrunat: IKEv1 and ESP in UDP port 500, as draft-huttunen-ipsec-esp-in-udp-01 describes them."""
