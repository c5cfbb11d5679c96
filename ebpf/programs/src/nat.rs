//! The steps of a left-out pod's packet to a backend, and its flow as a client of the choice.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use hawser_ebpf_abi::{Pin, PinKey, Reason, ServiceKey};
use hawser_ebpf_logic::choice::Choice;
use hawser_ebpf_logic::nat::{self, Outcome, Sender};
use hawser_ebpf_logic::pin::{self, Client, Clients};

use crate::maps;
use crate::socket::Maps;
use crate::tc::PodSkb;

/// Addresses a left-out pod's packet to a backend, step by step: a step that called the next would not fit the stack.
#[inline(always)]
pub(crate) fn there(skb: *mut __sk_buff) -> u64 {
    const GO_ON: u64 = Outcome::GoOn.pack();
    let mut step = nat_begin(skb);
    if step == GO_ON {
        step = nat_choose(skb);
    }
    if step == GO_ON { nat_finish(skb) } else { step }
}

// Global functions (in the verifier's sense): checked once, not at every call.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_begin(skb: *mut __sk_buff) -> u64 {
    nat::begin(&PodSkb::new(skb)).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_choose(skb: *mut __sk_buff) -> u64 {
    // It looks at no packet. An argument that is not used the compiler would leave out of the call, but not of the function's type.
    nat::choose(&PodSkb::new(core::hint::black_box(skb))).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_finish(skb: *mut __sk_buff) -> u64 {
    nat::finish(&PodSkb::new(skb)).pack()
}

#[inline(always)]
pub(crate) fn assign(service: &ServiceKey, sender: &Sender) -> Choice {
    pin::assign(&Maps(sender), service, &maps::config())
}

impl Clients for Maps<&Sender> {
    #[inline(always)]
    fn seed(&self) -> u64 {
        self.0.seed
    }

    #[inline(always)]
    fn cookie(&self, client: Client) -> u64 {
        match client {
            Client::Socket => self.0.socket,
            Client::Namespace => self.0.pod,
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes nothing and always succeeds.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn pin(&self, client: Client, key: &PinKey) -> Option<Pin> {
        maps::pin(client, key)
    }

    #[inline(always)]
    fn write_pin(&self, client: Client, key: &PinKey, pin: &Pin) -> bool {
        maps::write_pin(client, key, pin)
    }

    #[inline(always)]
    fn note(&self, reason: Reason) {
        maps::count(reason);
    }
}
