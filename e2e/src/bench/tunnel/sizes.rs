//! Pods whose MTU is larger than the tunnel's, beside pods whose MTU is the tunnel's: the same flow, in turns, through agents
//! and programs.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::json;

use super::super::result::Row;
use super::super::stats::Estimate;
use crate::lab::Lab;
use crate::place::Place;
use crate::plan::NAMESPACE;
use crate::process::run_with_input;

const ROUNDS: usize = 6;
/// Of the pods, as a CNI leaves them; and of the tunnel.
const LARGE: u32 = 1500;
const MATCHED: u32 = 1420;
/// Behind the service: TCP and UDP.
const PORT: u16 = 5201;
const PATIENCE: Duration = Duration::from_secs(20);
const HEADERS: usize = 28;
/// Datagrams between two looks at the path's MTU, as a program that heeds it does.
const BURST: usize = 32;

/// Bytes a second that arrived.
#[derive(Default)]
struct Rates {
    tcp: Vec<f64>,
    udp: Vec<f64>,
}

pub(super) fn measure(lab: &mut Lab, quick: bool) -> Result<Vec<Row>> {
    let lasts = if quick { Duration::from_millis(200) } else { Duration::from_secs(1) };
    let to = serve(lab)?;
    lab.wait("the pod's port is open to the mesh", PATIENCE, |lab| tcp(lab, to, Duration::ZERO))?;
    let (mut large, mut matched) = (Rates::default(), Rates::default());
    for round in 0..ROUNDS {
        let mut turns = [(LARGE, &mut large), (MATCHED, &mut matched)];
        turns.rotate_left(round % 2);
        for (mtu, rates) in turns {
            set_mtu(lab, mtu)?;
            let what = || format!("pods of MTU {mtu}, round {}", round + 1);
            rates.tcp.push(tcp(lab, to, lasts).with_context(what)?);
            rates.udp.push(udp(lab, to, lasts).with_context(what)?);
        }
    }
    lab.check_alive()?;
    let row = |key: &str, [large, matched]: [&[f64]; 2]| {
        Row::estimated(key, Estimate::of_ratios(large, matched), "ratio", "higher", Some(0.95))
            .beside("Gb/s, 1500", Estimate::of(large).median * 8e-9)
            .beside("Gb/s, 1420", Estimate::of(matched).median * 8e-9)
    };
    Ok(vec![
        row("pods of MTU 1500 over 1420 / pods of 1420: TCP", [&large.tcp, &matched.tcp]),
        row("pods of MTU 1500 over 1420 / pods of 1420: UDP", [&large.udp, &matched.udp]),
    ])
}

fn client(lab: &Lab) -> &Place {
    &lab.cluster("us-east").pod("client").place
}

fn server(lab: &Lab) -> &Place {
    &lab.cluster("eu-west").pod("cart-0").place
}

fn set_mtu(lab: &Lab, mtu: u32) -> Result<()> {
    for place in [client(lab), server(lab)] {
        // What the last round learned is not known in this one.
        let batch = format!("link set eth0 mtu {mtu}\nroute flush cache\n");
        run_with_input(place.command("ip").args(["-batch", "-"]), &batch)?;
    }
    Ok(())
}

/// Opens a port of eu-west's pod to the mesh, for TCP and UDP.
fn serve(lab: &Lab) -> Result<SocketAddr> {
    let cluster = lab.cluster("eu-west");
    let (node, pod) = (&cluster.nodes[0], cluster.pod("cart-0").plan.address);
    let metadata = |labels: serde_json::Value| {
        json!({
            "annotations": {"hawser.io/global": "true"}, "creationTimestamp": "2026-11-21T00:00:00Z",
            "labels": labels, "name": "flow", "namespace": NAMESPACE, "resourceVersion": "2001",
            "uid": "0d6f3b52-5f2e-4c1b-9d3a-000000000001",
        })
    };
    let ports = |more: fn(&str) -> serde_json::Value| {
        ["TCP", "UDP"].map(|protocol| {
            let mut port = json!({"name": protocol.to_lowercase(), "port": PORT, "protocol": protocol});
            if let (Some(port), Some(more)) = (port.as_object_mut(), more(protocol).as_object()) {
                port.extend(more.clone());
            }
            port
        })
    };
    let address = Ipv4Addr::new(172, 20, cluster.plan.id, 52);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(json!({"app": "flow"})),
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": ports(|_| json!({"targetPort": PORT})),
            "selector": {"app": "cart"}, "sessionAffinity": "None", "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    });
    let slice = json!({
        "addressType": "IPv4", "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "endpoints": [{
            "addresses": [pod], "nodeName": node.plan.name,
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }],
        "metadata": metadata(json!({"kubernetes.io/service-name": "flow"})),
        "ports": ports(|_| json!({})),
    });
    for (name, object) in [("service-flow", service), ("endpointslice-flow", slice)] {
        node.place.write(format!("/etc/hawser/manifests/{name}.yaml"), &object.to_string())?;
    }
    Ok(SocketAddr::new(IpAddr::V4(pod), PORT))
}

/// One flow for so long.
fn tcp(lab: &Lab, to: SocketAddr, lasts: Duration) -> Result<f64> {
    let listener = server(lab).in_network(|| TcpListener::bind(to).context("listening in the pod"))?;
    let receiver = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        let (mut bytes, mut buffer) = (0, vec![0; 256 << 10]);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(bytes),
                read => bytes += read as u64,
            }
        }
    });
    let connected = client(lab)
        .in_network(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)).context("reaching the pod"));
    let began = Instant::now();
    let sent = connected.and_then(|mut stream| {
        stream.set_write_timeout(Some(PATIENCE))?;
        let block = vec![7; 256 << 10];
        while began.elapsed() < lasts {
            stream.write_all(&block).context("nothing goes through: a black hole")?;
        }
        Ok(())
    });
    if sent.is_err() {
        // Ends the receiver, if it still waits.
        drop(server(lab).in_network(|| TcpStream::connect(to).context("waking the receiver")));
    }
    let bytes = receiver.join().ok().context("the receiver panicked")?.context("receiving")?;
    sent?;
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

/// As many datagrams as can be sent in so long, each as large as the path's MTU is known to be.
fn udp(lab: &Lab, to: SocketAddr, lasts: Duration) -> Result<f64> {
    let receiver = server(lab).in_network(|| UdpSocket::bind(to).context("a socket in the pod"))?;
    receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
    let over = AtomicBool::new(false);
    let received = std::thread::scope(|scope| -> Result<u64> {
        let counter = scope.spawn(|| {
            let (mut bytes, mut buffer) = (0, [0; 2048]);
            loop {
                match receiver.recv(&mut buffer) {
                    Ok(length) => bytes += length as u64,
                    Err(_) if over.load(Ordering::Acquire) => return bytes,
                    Err(_) => {}
                }
            }
        });
        let sent = client(lab).in_network(|| send(to, lasts));
        over.store(true, Ordering::Release);
        let bytes = counter.join().ok().context("the receiver panicked")?;
        sent?;
        Ok(bytes)
    })?;
    ensure!(received > 0, "no datagram arrived: a black hole");
    Ok(received as f64 / lasts.as_secs_f64())
}

fn send(to: SocketAddr, lasts: Duration) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let (began, block) = (Instant::now(), [7; LARGE as usize]);
    while began.elapsed() < lasts {
        let mtu = getsockopt(&socket, sockopt::IpMtu).context("the path's MTU")?;
        let length = usize::try_from(mtu)?.saturating_sub(HEADERS).min(block.len());
        for _ in 0..BURST {
            match socket.send(&block[..length]) {
                Ok(_) => {}
                // EMSGSIZE: the path has become narrower, the next burst heeds it. A full queue drops.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => break,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::OutOfMemory) => {}
                Err(error) => return Err(error).context("sending"),
            }
        }
    }
    Ok(())
}
