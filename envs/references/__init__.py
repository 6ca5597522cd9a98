"""What a learned agent is compared with: exact posteriors, optimal or best known returns."""
