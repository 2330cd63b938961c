"""Fleet single flight: many machines, one bucket, one download. The protocol, and why it may be relied on.

**What there is.** A bucket with two properties: a conditional create succeeds once, and a read or a listing shows what
was written before it began. Nothing else is asked for: no compare-and-swap, no clock, no message between machines.

**Words.** A *claim* on a key is a small object ``claims/<key id>/<number>``, made by a conditional create. Its number
is its *generation*; a random *mark* in it names it for all time. Its owner, the *claimer*, replaces its *beat*, an
object that only it writes, several times in a *lease*. Who finds a claim *waits*: it reads the beat now and then.

**States of a claim, and who may do what.** ::

    (none) ──create──▶ made ──checked──▶ held ──publish──▶ let go of (deleted by its owner)
                        │                 │ ├──failed──▶ its beat says so; the next generation may be made
                        ▼                 │ └──beat still for the lease──▶ dead; the next generation may be made
                     given back           ▼
                                  stands down (a higher generation is there at its next beat)

1. Who finds no claim makes generation 1. Who has seen generation *n* dead, or failed, makes *n* + 1.
2. Who has made one *checks*: no higher generation is there, and the one it replaces stands as it was seen dead (same
   mark, same beat). Else it deletes its own, and looks anew. Only who has checked *holds* the claim.
3. A claimer lists before each beat. If its claim is gone, or a higher generation is there, it stops downloading, and
   waits like all others.
4. A claimer publishes the object, then the ref record; then it removes parts, older claims, its claim, its beat, in
   this order. Who sees the beat go, or holds a new claim, looks at the tier before it does anything else.

**At most one holds a key**, unless a claimer was stopped, or cut off from the bucket, for longer than its lease. Of
one generation, a conditional create has one winner. Let X hold *g*, Y hold a higher *h*, and X be no such claimer; of
all such pairs take that with the lowest *h*. X found nothing higher when it checked, so *h* was made after that, on
*h* - 1, which Y had seen dead, and found unchanged, mark and beat, when it had made *h*. If *h* - 1 was X's, X was
stopped for the lease. If it was another's that had failed, that one had held it beside X, and *h* was not the lowest.
Else it stood still for a lease; X has listed several times meanwhile, found it above its own, and stood down. Numbers
begin at 1 again when all claims are gone, so that an old one can come twice: the mark tells the two apart.
`tests/fleet/test_protocol.py` tries it in every order that Hypothesis can think of.

**A claimer that was stopped and comes back** sees a higher generation at its next beat, and stands down. What it wrote
meanwhile hurts nobody: a beat under its own mark, which nobody reads; pieces under its own mark, which no index of
another names; and content, which is addressed by its digest and verified by whoever takes it. So two claimers can cost
a download twice, for the time of one beat, and never a wrong byte (I9: correctness rests on no lock, and on no claim).

**Clocks.** No moment is ever written down to be compared. A waiter measures, by its own monotonic clock, for how long
*it* has read the same beat; a machine whose wall clock is hours off behaves as any other.

**Nobody waits for ever.** A beat that stands still for the lease (15 s; a random half more, so that not all come at
once) loses the claim. So does a claimer that beats and gets no further, for ten leases. A claimer whose origin stalls
ends by its own timeouts. One that fails for a reason that would meet all (404, refused, wrong bytes) leaves that as a
note in its beat, and those who have waited raise it too; what may be its own trouble (its network) counts when a
second machine has met it as well. Who comes later finds a failure that it did not wait for, looks on for a second or
two, and tries again, one of them for all. The caller's deadline ends every wait with its DeadlineError, and a cancel
at once. Three claims that were let go of without anything in the tier, and a bucket that has not answered for the
patience (30 s), end the waiting: the machine asks the origin by itself.

**Costs.** A claimer: two requests to claim (create, listing), and two for each fifth of a lease (listing, beat). A
waiter: a listing, a read, then a read after 0.1 s, 0.15 s … 5 s at most, each with jitter; one create when a claim has
died. Beside it a piece and an index for each 8 to 32 MiB (`parts`).

**Garbage.** Who lets go of a claim removes those below it, and the beats of those who came back too late; who has
published, or found it published while it held the claim, removes all parts of the key. So a claim, a beat and parts
stay only where nobody waited when the last claimer was killed, or failed. The next machine that claims the key clears
them up; what is in the tier is claimed no more, and its remains, a few hundred bytes and perhaps parts, are for
`collect`, which looks twice, more than a lease apart.
"""

from __future__ import annotations

from .bucket import PATIENCE_S as PATIENCE_S
from .bucket import Bucket as Bucket
from .flight import LEASE_S as LEASE_S
from .flight import Fleet as Fleet
from .flight import Question as Question
from .garbage import collect as collect
from .index import Offered as Offered
from .parts import Sharing as Sharing
