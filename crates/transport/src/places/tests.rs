use rootswarm_swarm::Rng;
use tokio::time::advance;

use super::*;

const GRACE: Duration = Duration::from_secs(2);

fn limits(all: usize, address: usize, subnet: Option<usize>) -> Limits {
    Limits {
        all,
        address,
        subnet,
        grace: GRACE,
    }
}

fn host(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn idle(places: &Arc<Places>, address: IpAddr) -> Place {
    let place = places.enter(address).unwrap();
    place.idle();
    place
}

#[tokio::test(start_paused = true)]
async fn places_are_counted_by_address_and_given_back() {
    let places = Places::new(limits(9, 2, Some(9)));
    let [here, there] = [7, 8].map(host);
    let first = places.enter(here);
    let second = places.enter(here);
    assert!(first.is_some() && second.is_some());
    assert!(places.enter(here).is_none());
    assert!(places.enter(there).is_some());
    drop(first);
    assert!(places.enter(here).is_some());
    drop(second);
    assert_eq!(places.taken(), 0);
    let book = places.book();
    assert!(book.of_address.is_empty() && book.of_subnet.is_empty() && book.ranking.is_empty());
}

/// Each address with what it counts as, where the admin knows who belongs there and where not.
#[tokio::test(start_paused = true)]
async fn what_counts_together() {
    let table = [
        // Two addresses, and how many of the second come in after two of the first.
        ("10.0.0.1", "10.0.0.2", 2, 2),
        ("10.0.0.1", "10.0.0.1", 0, 0),
        ("fd00::1", "fd00::2", 1, 0),
        ("fd00::1", "fd00:0:0:1::1", 2, 2),
        ("fd00::1", "10.0.0.1", 2, 2),
    ];
    for (first, second, known, unknown) in table {
        for (subnet, expected) in [(Some(3), known), (None, unknown)] {
            let places = Places::new(limits(9, 2, subnet));
            let [first, second] = [first, second].map(|text| text.parse().unwrap());
            let held: Vec<_> = (0..2).map(|_| places.enter(first).unwrap()).collect();
            let more: Vec<_> = (0..3).filter_map(|_| places.enter(second)).collect();
            assert_eq!(more.len(), expected, "{first} {second} {subnet:?}");
            drop(held);
        }
    }
}

/// Nine addresses hold every place and say nothing: another one comes in at once, and again.
#[tokio::test(start_paused = true)]
async fn one_that_has_none_gets_the_place_of_one_that_has_many() {
    for (addresses, each) in [(1, 8), (2, 4), (4, 2)] {
        let places = Places::new(limits(8, 8, Some(8)));
        let held: Vec<Place> = (0..each)
            .flat_map(|_| 0..addresses)
            .map(|number| idle(&places, host(number)))
            .collect();
        assert_eq!(places.taken(), 8);
        let newcomer = places.enter(host(100)).unwrap();
        // The oldest of the first to hold most lost its place, and is told.
        let lost: Vec<usize> = held
            .iter()
            .enumerate()
            .filter(|(_, place)| !places.book().held.contains_key(&place.number))
            .map(|(number, _)| number)
            .collect();
        assert_eq!(lost.len(), 1, "{addresses}");
        assert!(lost[0] < usize::from(addresses), "one of the oldest");
        held[lost[0]].taken_back().await;
        drop(newcomer);
        // Dropping what was taken back frees nothing twice.
        drop(held);
        assert_eq!(places.taken(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_one_keeps_it_for_the_grace() {
    let places = Places::new(limits(3, 2, Some(9)));
    let held: Vec<Place> = (0..3).map(|number| idle(&places, host(number))).collect();
    assert!(places.enter(host(9)).is_none());
    advance(GRACE - Duration::from_millis(1)).await;
    assert!(places.enter(host(9)).is_none());
    // One that does something is safe for ever.
    held[0].busy();
    advance(Duration::from_millis(1)).await;
    let ninth = places.enter(host(9)).unwrap();
    held[1].taken_back().await;
    let tenth = places.enter(host(10)).unwrap();
    held[2].taken_back().await;
    assert!(places.enter(host(11)).is_none(), "all are busy");
    drop((ninth, tenth, held));
    assert_eq!(places.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_an_address_wins_over_its_oldest() {
    for subnet in [None, Some(2)] {
        let places = Places::new(limits(9, 2, subnet));
        let addresses: [IpAddr; 3] = match subnet {
            None => [host(1); 3],
            Some(_) => [1, 2, 3].map(|low| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low).into()),
        };
        let first = idle(&places, addresses[0]);
        let second = idle(&places, addresses[1]);
        assert!(places.enter(addresses[2]).is_none());
        advance(GRACE).await;
        let third = places.enter(addresses[2]).unwrap();
        first.taken_back().await;
        drop((first, second, third));
        assert_eq!(places.taken(), 0);
    }
}

/// Against a list kept the plain way.
#[tokio::test(start_paused = true)]
async fn the_books_are_right_whatever_happens() {
    let limits = limits(12, 4, Some(6));
    let places = Places::new(limits);
    let mut rng = Rng::new(5);
    let address = |number: usize| -> IpAddr {
        match number {
            0..4 => host(number as u8),
            number => Ipv6Addr::new(0xfd00, 0, 0, number as u16 & 1, 0, 0, 0, number as u16).into(),
        }
    };
    let mut held: Vec<(IpAddr, Place)> = Vec::new();
    for _ in 0..20_000 {
        match rng.below(6) {
            0 | 1 => {
                let address = address(rng.below(10));
                if let Some(place) = places.enter(address) {
                    held.push((address, place));
                }
            }
            2 if !held.is_empty() => held[rng.below(held.len())].1.idle(),
            3 if !held.is_empty() => held[rng.below(held.len())].1.busy(),
            4 if !held.is_empty() => drop(held.swap_remove(rng.below(held.len()))),
            _ => advance(Duration::from_millis(100)).await,
        }
        let here = |place: &Place| places.book().held.contains_key(&place.number);
        let left: Vec<&IpAddr> = held
            .iter()
            .filter(|(_, place)| here(place))
            .map(|(address, _)| address)
            .collect();
        let book = places.book();
        assert_eq!(left.len(), book.held.len());
        assert!(left.len() <= limits.all);
        for address in &left {
            let same = left.iter().filter(|other| other == &address).count();
            assert_eq!(same, book.of_address[*address].places);
            assert!(same <= limits.address);
            if let Some(subnet) = subnet_of(**address) {
                let near = left.iter().filter(|it| subnet_of(***it) == Some(subnet));
                let near = near.count();
                assert_eq!(near, book.of_subnet[&subnet].places);
                assert!(near <= 6);
            }
        }
        let idle = book.held.values().filter(|it| it.idle.is_some()).count();
        assert_eq!(idle, book.idle.len());
        let ranked: usize = book.ranking.iter().map(|(count, _)| count).sum();
        assert_eq!(idle, ranked);
    }
}
