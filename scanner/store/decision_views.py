"""The views over the decision log, for people and other programs: SQL over the tables of the store.

`decision_log` is the whole log, one row for each event, with the checkpoint and the match or membership that
it is about. `standing_decisions` is what stands: one row for each match, membership or checkpoint (see
scanner.store.decisions). `grounds` says what was decided about: "trained_on", "gives_back", or
"trained_on+gives_back", which for a match means that its reference was trained on too.
"""

from __future__ import annotations

from scanner.store.decisions import STANDING_EVENTS
from scanner.store.grounds import GROUNDS

# The tables that the views read.
READS = ("decisions", "scans", "matches", "memberships", "references", "checkpoints")


# An event about a match names the match, one about a membership the membership, and one about a checkpoint
# as a whole the scan. A membership of the same reference as a flagged match is shown together with it, so a
# decision on that match is about both. Nearly all events are about flagged matches and whole checkpoints,
# which are quick to find; the millions of other matches are read only for what is left. `{events}` names a
# table with rows of `decisions`.
EVIDENCE = f"""
standing_events AS ({STANDING_EVENTS}),
subjects AS (SELECT DISTINCT subject_id FROM {{events}}),
flags AS MATERIALIZED (
    SELECT match_id, scan_id, corpus, reference_id, similarity, q_value, flagged FROM matches WHERE flagged
),
decided_flags AS MATERIALIZED (FROM flags SEMI JOIN subjects ON match_id = subject_id),
decided_scans AS MATERIALIZED (SELECT scan_id FROM all_scans SEMI JOIN subjects ON scan_id = subject_id),
others AS MATERIALIZED (
    FROM subjects
    WHERE subject_id NOT IN (SELECT match_id FROM decided_flags)
        AND subject_id NOT IN (SELECT scan_id FROM decided_scans)
),
matched AS MATERIALIZED (
    FROM decided_flags
    UNION ALL
    SELECT match_id, scan_id, corpus, reference_id, similarity, q_value, flagged
    FROM matches SEMI JOIN others ON match_id = subject_id
),
trained AS (
    SELECT membership_id, scan_id, corpus, reference_id, margin, q_value AS membership_q, trained_on
    FROM memberships
    WHERE membership_id IN (SELECT subject_id FROM subjects) OR scan_id IN (SELECT scan_id FROM matched)
),
evidence AS (
    SELECT match_id AS subject_id, 'match' AS subject, m.scan_id, m.corpus, m.reference_id, similarity,
        m.q_value, margin, membership_q,
        CASE WHEN trained_on THEN 'trained_on+gives_back' ELSE 'gives_back' END AS grounds
    FROM matched m LEFT JOIN trained t ON m.flagged AND t.scan_id = m.scan_id AND t.corpus = m.corpus
        AND t.reference_id = m.reference_id
    UNION ALL BY NAME
    SELECT membership_id AS subject_id, 'membership' AS subject, scan_id, corpus, reference_id, margin,
        membership_q, 'trained_on' AS grounds
    FROM trained SEMI JOIN subjects ON membership_id = subject_id
),
owned AS (
    SELECT corpus, reference_id, path FROM "references" SEMI JOIN evidence USING (corpus, reference_id)
    QUALIFY row_number() OVER (PARTITION BY corpus, reference_id ORDER BY added_at DESC) = 1
),
subject_scans AS (
    SELECT * REPLACE (coalesce(scan_id, subject_id) AS scan_id)
    FROM subjects LEFT JOIN evidence USING (subject_id)
)"""
# The checkpoints of the scans in `subject_scans`. Scans and checkpoints are taken from all stored rows,
# since an event stays when its scan is repeated or its checkpoint is published anew.
PLACES = f"""
scanned AS (
    SELECT scan_id, checkpoint_id, config_id, verdict, {GROUNDS} AS scan_grounds
    FROM all_scans SEMI JOIN subject_scans USING (scan_id)
    QUALIFY row_number() OVER (PARTITION BY scan_id ORDER BY finished_at DESC) = 1
),
listed AS (
    SELECT checkpoint_id, source, repo, revision, file
    FROM all_checkpoints SEMI JOIN scanned USING (checkpoint_id)
    QUALIFY row_number() OVER (
        PARTITION BY checkpoint_id ORDER BY starts_with(source, 'folder:'), listed_at DESC) = 1
)"""
_LOG = f"""
WITH {EVIDENCE.format(events="decisions")}, {PLACES}
SELECT
    decided_at, reviewer, event, decision, note, withdraws, decision_id,
    decision_id IN (SELECT decision_id FROM standing_events) AS stands,
    coalesce(subject, CASE WHEN verdict IS NOT NULL THEN 'checkpoint' END) AS subject,
    subject_id, source, repo, revision, file, checkpoint_id, scan_id, config_id, verdict,
    corpus, reference_id, path AS reference_path, similarity, q_value,
    coalesce(grounds, scan_grounds) AS grounds, margin, membership_q
FROM decisions
JOIN subject_scans USING (subject_id)
LEFT JOIN scanned USING (scan_id)
LEFT JOIN listed USING (checkpoint_id)
LEFT JOIN owned USING (corpus, reference_id)"""
_STANDING = """
SELECT
    any_value(decision) FILTER (event = 'decide') AS decision,
    any_value(reviewer) FILTER (event = 'decide') AS decided_by,
    any_value(decided_at) FILTER (event = 'decide') AS decided_at,
    coalesce(any_value(note) FILTER (event = 'note'), '') AS note,
    any_value(reviewer) FILTER (event = 'note') AS noted_by,
    any_value(decided_at) FILTER (event = 'note') AS noted_at,
    subject, subject_id, source, repo, revision, file, checkpoint_id, scan_id, config_id, verdict,
    corpus, reference_id, reference_path, similarity, q_value, grounds, margin, membership_q
FROM log
WHERE stands AND (event = 'decide' OR note <> '')
GROUP BY ALL"""

DECISION_VIEWS = {
    "decision_log": f"{_LOG} ORDER BY decided_at, decision_id",
    "standing_decisions": f"""
        WITH log AS ({_LOG}), standing AS ({_STANDING})
        SELECT * FROM standing ORDER BY coalesce(decided_at, noted_at), subject_id""",
}
