-- ESP through NAT, draft-huttunen-ipsec-esp-in-udp-01: ESP and IKE on one UDP port.
--
-- A datagram of the IKE port is, by its first octets (clauses 3.2 and 4.3 of the draft):
--   eight octets of zero   ESP behind that marker        -> Wireshark's "esp" dissector
--   a single octet 0xFF    a NAT keepalive
--   anything else          IKE                           -> Wireshark's "isakmp" dissector
-- Without this file Wireshark shows the ESP packets as malformed ISAKMP.
--
-- To install: copy this file to the folder named "Personal Lua Plugins" in Help > About Wireshark > Folders,
-- then Analyze > Reload Lua Plugins (Ctrl+Shift+L). For one run of tshark: tshark -X lua_script:espthrunat.lua -r FILE
-- Port 500 at either end is enough, so clients behind a port-translating NAT need nothing more. A responder on another
-- port (clause 4.1): Preferences > Protocols > ESPTHRUNAT, or -o espthrunat.ports:500,4000; without that, packets
-- with a plain marker or IKE header are still found by their shape on any port that has no dissector of its own.

local esp = Dissector.get("esp")
local isakmp = Dissector.get("isakmp")

local espthrunat = Proto("espthrunat", "ESP through NAT")
local marker = ProtoField.bytes("espthrunat.marker", "ESP marker", base.NONE, "Eight octets of zero: ESP follows")
local keepalive = ProtoField.none("espthrunat.keepalive", "NAT keepalive", "One octet 0xFF")
espthrunat.fields = { marker, keepalive }
espthrunat.prefs.ports = Pref.range("UDP ports", "500", "Ports on which IKE and ESP share a socket", 65535)
espthrunat.prefs.opaque = Pref.bool("Leave what ESP holds undissected", false, "Show ESP whatever is in it")

local MARKER_LENGTH = 8
local ESP_HEADER_LENGTH = 8
local ISAKMP_HEADER_LENGTH = 28

local function has_marker(buffer)
    return buffer:len() > MARKER_LENGTH and buffer(0, 4):uint() == 0 and buffer(4, 4):uint() == 0
end

local function is_keepalive(buffer)
    return buffer:len() == 1 and buffer(0, 1):uint() == 0xff
end

function espthrunat.dissector(buffer, pinfo, tree)
    if is_keepalive(buffer) then
        pinfo.cols.protocol = "ESPThruNAT"
        pinfo.cols.info = "NAT keepalive"
        tree:add(espthrunat, buffer()):add(keepalive, buffer(0, 1))
        return 1
    end
    if has_marker(buffer) then
        tree:add(espthrunat, buffer(0, MARKER_LENGTH)):add(marker, buffer(0, MARKER_LENGTH))
        esp:call(buffer(MARKER_LENGTH):tvb(), pinfo, tree)
        return buffer:len()
    end
    return isakmp:call(buffer, pinfo, tree)
end

-- Ports: those of the preference, either end; entries replace Wireshark's own (isakmp on 500).
local udp_ports = DissectorTable.get("udp.port")
local registered = ""

local function register(ports)
    if registered ~= "" then
        udp_ports:remove(registered, espthrunat)
    end
    udp_ports:add(ports, espthrunat)
    registered = ports
end

register(espthrunat.prefs.ports)

-- Opaque: an inner packet is data. Wireshark dissects it before it shows ESP's ICV, so that one which its own dissector
-- calls malformed, as random octets on some protocol's port may be, would leave the ICV out of the tree.
local data = Dissector.get("data")
local seen_esp = Field.new("esp.spi")
local carried = Proto("espthrunat_carried", "ESP through NAT, what ESP holds")
local by_protocol = { [1] = "icmp", [4] = "ip", [6] = "tcp", [17] = "udp" }
local is_opaque = false

function carried.dissector(buffer, pinfo, tree)
    local dissector = seen_esp() and data or Dissector.get(by_protocol[pinfo.match])
    return dissector:call(buffer, pinfo, tree)
end

local function make_opaque()
    is_opaque = true
    local protocols = DissectorTable.get("ip.proto")
    for number in pairs(by_protocol) do
        protocols:add(number, carried)
    end
end

function espthrunat.prefs_changed()
    if registered ~= espthrunat.prefs.ports then
        register(espthrunat.prefs.ports)
    end
    if espthrunat.prefs.opaque and not is_opaque then
        make_opaque()
    end
end

-- Other ports: by shape. An SPI below 256 is reserved (RFC 2406, 2.1); an ISAKMP header states its own length.
local function looks_like_ours(buffer)
    local length = buffer:len()
    if has_marker(buffer) then
        return length >= MARKER_LENGTH + ESP_HEADER_LENGTH + 2 and buffer(MARKER_LENGTH, 4):uint() > 255
    end
    return length >= ISAKMP_HEADER_LENGTH
        and buffer(17, 1):uint() == 0x10
        and buffer(24, 4):uint() == length
        and not (buffer(0, 4):uint() == 0 and buffer(4, 4):uint() == 0)
end

espthrunat:register_heuristic("udp", function(buffer, pinfo, tree)
    if not looks_like_ours(buffer) then
        return false
    end
    espthrunat.dissector(buffer, pinfo, tree)
    pinfo.conversation = espthrunat -- the flow's keepalives have too little shape to be found alone
    return true
end)
