#!/bin/bash
# A certificate for HTTPS, for examples/tls.yaml: without an authority that the world knows, but checked all the same.
#
#   bash examples/certificate.sh pixtral.internal                # a name, or an address that is known before
#   bash examples/certificate.sh 203.0.113.7 ~/elsewhere         # into another folder than ~/.pixtral-sky/tls
#
# It makes an authority, signs one certificate with it, and throws the key of the authority away: who trusts ca.pem
# trusts this certificate, and nobody can ever sign another one.
set -eo pipefail
fail() { echo "certificate: $*" >&2; exit 1; }

host=$1
folder=${2:-~/.pixtral-sky/tls}
days=730 # Apple's programs take none that is valid for more than 825 days
[ -n "$host" ] || fail "for which host? Run: bash $0 pixtral.internal"
[[ $host =~ ^[A-Za-z0-9.:-]+$ ]] || fail "$host is no name of a host, and no address."
name="DNS:$host"
[[ ! $host =~ ^[0-9]+(\.[0-9]+){3}$|: ]] || name="IP:$host"
command -v openssl >/dev/null || fail "there is no openssl here. Install it: https://openssl-library.org"
[ ! -e "$folder/key.pem" ] || fail "$folder/key.pem is there already, and a service may use it. Name another folder."

umask 077 # the key is for nobody else
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/openssl.cnf" <<CNF
[req]
prompt = no
distinguished_name = name
[name]
CN = pixtral-sky
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $name
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CNF

openssl ecparam -name prime256v1 -genkey -noout -out "$work/authority.pem"
openssl ecparam -name prime256v1 -genkey -noout -out "$work/key.pem"
openssl req -x509 -new -config "$work/openssl.cnf" -subj "/CN=pixtral-sky authority" -extensions authority -key "$work/authority.pem" \
  -days "$days" -sha256 -out "$work/ca.pem"
openssl req -new -config "$work/openssl.cnf" -key "$work/key.pem" -out "$work/request.pem"
openssl x509 -req -in "$work/request.pem" -CA "$work/ca.pem" -CAkey "$work/authority.pem" \
  -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/openssl.cnf" -extensions server \
  -days "$days" -sha256 -out "$work/cert.pem" 2> "$work/said" || fail "$(cat "$work/said")"
openssl verify -CAfile "$work/ca.pem" "$work/cert.pem" >/dev/null
mv "$work/key.pem" "$work/cert.pem" "$work/ca.pem" "$folder"

echo "$folder: key.pem and cert.pem for the balancer, ca.pem for its callers. For $host, until $(
  openssl x509 -in "$folder/cert.pem" -noout -enddate | cut -d= -f2)."
