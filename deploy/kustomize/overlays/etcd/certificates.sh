#!/bin/sh
# Makes the certificates of etcd and of its clients in DIR: one CA, server.crt for the members (to clients and to each
# other), client.crt for the API servers. Said again, it renews both by the CA that is there. etcd reads its files anew for each
# connection, and so does the API server.
set -eu
dir=${1:?usage: certificates.sh DIR [NAME-OR-ADDRESS...], more names for server.crt}
shift
umask 077
mkdir -p "$dir"
cd "$dir"
names="DNS:*.hawser-etcd.hawser-system.svc,DNS:hawser-etcd.hawser-system.svc,DNS:localhost,IP:127.0.0.1"
for name in "$@"; do
  case $name in
    *[!0-9.:a-f]*) names="$names,DNS:$name" ;;
    *) names="$names,IP:$name" ;;
  esac
done
cat > openssl.cnf <<CNF
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = $names
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
CNF
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
if [ ! -e ca.key ]; then
  key ca.key
  openssl req -new -x509 -key ca.key -sha256 -days 3650 -subj /CN=hawser-etcd -config openssl.cnf -extensions ca -out ca.crt
fi
for who in server client; do
  key $who.key
  openssl req -new -key $who.key -subj /CN=hawser-etcd-$who -config openssl.cnf -out $who.csr
  openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 397 \
    -extfile openssl.cnf -extensions $who -out $who.crt 2>/dev/null
  rm $who.csr
done
rm -f openssl.cnf ca.srl
