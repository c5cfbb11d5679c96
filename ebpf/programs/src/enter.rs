//! The programs of uplinks that were opted in, and the answers of other clusters to clients outside.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_abi::{Addr, EnterBegun, EnterKey, Entered, Port, ServiceKey};
use hawser_ebpf_logic::enter::{self, Step, Uplink};

use crate::maps;
use crate::tc::{PodSkb, Skb, TELL_TOO_BIG, TunnelSkb};

#[classifier]
pub fn uplink_in(ctx: TcContext) -> i32 {
    const CHOOSE: u64 = Step::Choose.pack();
    const SETTLE: u64 = Step::Settle.pack();
    const REMEMBER: u64 = Step::Remember.pack();
    const CARRY: u64 = Step::Carry.pack();
    const ABOUT: u64 = Step::About.pack();
    let skb = ctx.as_ptr().cast();
    let mut step = enter_begin(skb);
    if step == CHOOSE {
        step = enter_choose(skb);
    }
    if step == SETTLE {
        step = enter_settle(skb);
    }
    if step == REMEMBER {
        step = enter_remember(skb);
    }
    let result = match step {
        CARRY => enter_carry(skb),
        ABOUT => enter_about(skb),
        _ => return PodSkb::new(skb).carry_out(Step::unpack(step).verdict()),
    };
    (if result == TELL_TOO_BIG as u64 { enter_too_big(skb) } else { result }) as i32
}

#[classifier]
pub fn uplink_out(ctx: TcContext) -> i32 {
    let skb = PodSkb::new(ctx.as_ptr().cast());
    skb.carry_out(enter::uplink_out(&skb))
}

// Global functions (in the verifier's sense): checked once, and their stacks are not under way at the same time.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_begin(skb: *mut __sk_buff) -> u64 {
    enter::begin(&PodSkb::new(skb)).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_choose(skb: *mut __sk_buff) -> u64 {
    // It looks at no packet. An argument that is not used the compiler would leave out of the call, but not of the function's type.
    enter::choose(&PodSkb::new(core::hint::black_box(skb))).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_settle(skb: *mut __sk_buff) -> u64 {
    enter::settle(&PodSkb::new(core::hint::black_box(skb))).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_remember(skb: *mut __sk_buff) -> u64 {
    enter::remember(&PodSkb::new(core::hint::black_box(skb))).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_carry(skb: *mut __sk_buff) -> u64 {
    let skb = PodSkb::new(skb);
    skb.carry_out(enter::carry(&skb)) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_about(skb: *mut __sk_buff) -> u64 {
    let skb = PodSkb::new(skb);
    skb.carry_out(enter::about(&skb)) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_too_big(skb: *mut __sk_buff) -> u64 {
    let skb = PodSkb::new(skb);
    skb.carry_out(enter::tell_too_big(&skb)) as u64
}

/// What `tunnel_in` gives the node's mesh address.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_back(skb: *mut __sk_buff) -> u64 {
    let skb = TunnelSkb::new(skb);
    skb.carry_out(enter::tunnel_back(&skb)) as u64
}

impl<const L2: u32> Uplink for Skb<L2> {
    #[inline(always)]
    fn frontend(&self, key: &ServiceKey) -> Option<ServiceKey> {
        maps::frontend(key)
    }

    #[inline(always)]
    fn entered(&self, key: &EnterKey) -> Option<Entered> {
        maps::entered(key)
    }

    #[inline(always)]
    fn write_entered(&self, key: &EnterKey, to: &Entered, new: bool) -> bool {
        maps::write_entered(key, to, new)
    }

    #[inline(always)]
    fn forget_entered(&self, key: &EnterKey) {
        maps::forget_entered(key);
    }

    #[inline(always)]
    fn touch_entered(&self, key: &EnterKey, without: u32, with: u32) {
        maps::touch_entered(key, without, with);
    }

    #[inline(always)]
    fn keep_entered(&self, begun: &EnterBegun) {
        maps::keep_entered(begun);
    }

    #[inline(always)]
    fn begun_entered(&self) -> Option<EnterBegun> {
        maps::begun_entered()
    }

    #[inline(always)]
    fn send_entered_to(&self, addr: Addr, port: Port) {
        maps::send_entered_to(addr, port);
    }

    #[inline(always)]
    fn masquerade(&self, mark: u32) {
        self.add_mark(mark);
    }
}
